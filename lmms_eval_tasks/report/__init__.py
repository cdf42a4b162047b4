"""From lmms-eval's results files to a terminal table and one self-contained HTML page."""
