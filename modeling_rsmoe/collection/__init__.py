"""Archives: what the model says about very many images, or their features, as one Parquet with a row for each image.

`items` finds the images, `describers` run the model on a batch of them, `worker` makes one part of the archive,
`engines` let workers make all parts (in this process, or on a Ray cluster), `store` keeps the parts, so that a stopped
run goes on, and puts them together; `run` is these in a row. `features` reads features back.
"""
