"""How good the measure is on one model: `study.py` makes the runs, `reading.py` computes, `page.py` prints one page."""
