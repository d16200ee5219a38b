"""`rsmoe serve`: a model behind the chat-completions part of OpenAI's HTTP API.

`access` knows who may ask, `body` takes what arrives, `chat` the API's shapes, `images` what a request may bring as an
image, `batching` lets requests share batches, `app` ties them together within `limits`. All requests are untrusted.
"""
