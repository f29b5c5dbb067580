#!/usr/bin/env python
"""Segment pictures: `python demo.py photo.jpg --names cat "grass, lawn" sky`."""

from clearclip.cli.segment import main

if __name__ == "__main__":
    main()
