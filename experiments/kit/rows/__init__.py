"""Methods that are rows of a table: `seeds` trains all seeds, `cost` counts, `table` runs each row once."""
