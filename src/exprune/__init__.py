"""Exchangeability-based dynamic pruning: ``exprune.core`` is the method, ``exprune.lab`` its reproduction."""
