"""Communication reports: sums over ledgers, tables, charts, comparisons and estimates. Imports layers 0 and 1."""
