"""`rsmoe serve`: a model behind the chat-completions part of OpenAI's HTTP API.

`chat` knows the API's shapes, `images` what a request may bring as an image, `engine` batches what is asked at the same
time into one `generate`, `app` ties them together within `limits`. All requests are untrusted.
"""
