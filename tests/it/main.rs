//! Tests of the whole: the command line, the sources' layering, generated files, kernels and servers.
