// ORBITSPLIT_API marks what a shared library exports. Its other symbols are hidden, and so are all those of a static one,
// so that an extension module or a plug-in that contains the library exports nothing of it.
#pragma once

#if defined(ORBITSPLIT_SHARED) && defined(__GNUC__)
#define ORBITSPLIT_API __attribute__((visibility("default")))
#else
#define ORBITSPLIT_API
#endif
