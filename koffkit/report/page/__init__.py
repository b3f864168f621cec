"""The report on a run or an export as one HTML file that needs nothing else."""
