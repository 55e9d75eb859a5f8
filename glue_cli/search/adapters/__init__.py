"""The outputs of mixed adapters from their factors, W x + sum_k alpha_k s_k B_k (A_k x): no blend is ever made."""
