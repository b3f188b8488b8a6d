"""The report of a run: one HTML file, its pictures, and the comparison of several runs."""
