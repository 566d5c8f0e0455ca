"""What a job is: specification, states, store, queue. Free of torch; the part of worker that service imports."""
