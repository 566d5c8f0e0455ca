"""Hardware: device, number format, attention backend, memory and throughput of a run."""
