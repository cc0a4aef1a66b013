"""What training and serving share: a model and what its errors mean. Knows no HTTP and no data set."""
