"""What a person asks for, from inputs to a folder of products: the one door that the command line, the
notebook and the server share."""
