-- -> {GPUs of the worker that has most, the largest memory for one job}; '' where nobody can say
return told_capacity(capacity())
