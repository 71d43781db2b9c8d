# status and randomness; the oracle itself; then every pass of the table against the oracle
en_test(test_status_rng test_status_rng.c LIBS en_kernels Threads::Threads)
en_test(test_oracle     test_oracle.c oracle.c LIBS en_kernels)
