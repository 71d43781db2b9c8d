/* h5_error.h - what HDF5 says of a failed call, as one line. */
#ifndef EN_DATA_H5_ERROR_H
#define EN_DATA_H5_ERROR_H

/* HDF5's innermost text for the last failed call of this thread; lives until the thread's next call. */
const char *en_h5_error(void);

#endif
