"""Making complete checkpoint folders: where the frozen parts come from, their download, conversion and assembly.

Nothing is imported here, so that ``rsmoe --help`` stays quick; take what you need from the modules:
``assemble.assemble``, ``download.demo_image``, ``sources.read_sources``.
"""
