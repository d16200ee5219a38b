"""`rsmoe bench`: what RS-MoE costs, against its base LM alone and against other ways to the same texts, in one run.

`run.py` names the sections and runs them; each gives plain JSON values (`results.py`), from which tables (`tables.py`)
and curves (`plots.py`) are made. Knows nothing about options.
"""
