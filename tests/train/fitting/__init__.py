"""Fitted tables: `train.fitting` and `train.fit_table`."""
