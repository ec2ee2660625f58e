"""SendFns to tune, for the how-to page on tuning throughput."""
