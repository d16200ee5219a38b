"""Data for training: ``records`` of a folder, their split into ``aspects``, and the ``rows`` made of them.

Import from the modules: ``from modeling_rsmoe.data.rows import stage1_rows``.
"""
