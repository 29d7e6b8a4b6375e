"""One file per published protocol: an experiment file `analysis: NAME` with its settings, run folders and a page."""
