"""Image collections: very many images, or their features, described into one Parquet with a row for each image.

`images` finds them, `describers` run the model on a batch of them, `worker` makes one shard of the output, `engines`
let workers make all shards (in this process, or on a Ray cluster), `store` keeps the shards, so that a stopped run
continues, and joins them; `pipeline` does these one after the other. `features` reads features back.
"""
