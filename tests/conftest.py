import agmm as agmm  # before any `import timm`: see agmm.compat
