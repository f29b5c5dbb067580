"""Measuring: data sets and metric by MMSegmentation, passes over the data, records, results."""
