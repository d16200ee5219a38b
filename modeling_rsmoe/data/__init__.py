"""Data: ``records`` of a folder, their split into ``aspects``, and the training ``examples`` made of them.

``benchmarks`` reads public datasets from their published files, ``folder`` writes data folders and makes Hugging Face
datasets. Import from the modules: ``from modeling_rsmoe.data.examples import stage1_examples``.
"""
