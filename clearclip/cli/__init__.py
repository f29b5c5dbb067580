"""The programs: a module for each command of `clearclip`. None of them imports PyTorch before it is needed."""
