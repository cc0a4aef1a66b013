"""The offline side: a data set in, a published version out."""
