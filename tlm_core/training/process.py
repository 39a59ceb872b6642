"""What the environment of a process that trains on a CPU must hold from its start; results do not depend on it."""

from __future__ import annotations

# The Dockerfile repeats these, held by a test.
ENVIRONMENT = {
    # Threads that wait for one another spin; where other processes are busy too, spinning for long takes the cores
    # from the very threads waited for.
    "GOMP_SPINCOUNT": "5000",
    # Large tensors come and go at every step. By default the C library gives their memory back each time, and the
    # kernel hands it out again page by page, zeroed: some 7 % of a step.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    # … and in large pages where the kernel has them: a step walks through hundreds of megabytes, and on a virtual
    # machine looking up small pages takes a tenth of it.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
