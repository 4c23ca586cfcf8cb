"""Results to a folder of Parquet parts that can be continued and opened as a data set."""
