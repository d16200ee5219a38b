"""Complete checkpoint folders: pretrained modules fetched, converted and assembled; cards, exports, quantisation.

Nothing is imported here, so that ``rsmoe --help`` stays quick; take what you need from the modules:
``assemble.assemble``, ``download.demo_image``, ``adapters.load_peft``.
"""
