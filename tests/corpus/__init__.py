"""Attacks on the service, each made by a function and refused with a code.

`archives`, `pickles`, `code` and `datasets` are refused by the scan; `programs` are whole models
whose forward attacks, which the sandbox must hold where the scan did not look.
"""
