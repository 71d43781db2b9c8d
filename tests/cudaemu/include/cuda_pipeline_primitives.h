#pragma once        /* hides the toolkit's header of this name; the primitives are in device_sync.h */
