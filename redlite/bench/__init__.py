SUITES = ("hhh", "truthfulqa", "mmlu", "bbh", "xstest")     # in the order in which they are asked and shown
