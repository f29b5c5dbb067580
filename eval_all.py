#!/usr/bin/env python
"""The benchmark table: `python eval_all.py --methods CLIP ClearCLIP`."""

from clearclip.cli.table import main

if __name__ == "__main__":
    main()
