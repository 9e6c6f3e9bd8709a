//! The functions of POSIX AIO.
