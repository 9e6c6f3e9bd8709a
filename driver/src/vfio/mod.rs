//! VFIO: the only place that touches PCI.
