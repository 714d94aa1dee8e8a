"""Molecules: as graphs for the paper's GCN, and as SMILES strings for a masked language model."""
