#!/usr/bin/env python
"""Evaluate one benchmark: `python eval.py voc20 --method ClearCLIP`."""

from clearclip.cli.eval import main

if __name__ == "__main__":
    main()
