"""The blend theta(alpha) of checkpoints, file to file: recipe, rules, compatibility, heads, blocks, adapters."""
