"""The cluster: nodes behind one door. `door` is what interfaces see; `api.Cluster` is the real one."""
