"""The captured graph: PyTorch's own ATen operations in a `torch.fx` graph, the passes that rewrite it, and the plan that tells what they did."""
