"""Attribution: what vectors say of a corpus: each query's best, the query set's influence, what to choose."""
