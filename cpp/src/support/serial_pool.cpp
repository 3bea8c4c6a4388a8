// The pool of a build of codecs alone (ORBITSPLIT_CODECS_ONLY), which has no threads: the caller does all the work.
#include "support/pool.hpp"

namespace orbitsplit::pool {

void run(std::size_t parts, [[maybe_unused]] int threads, void (*work)(void*, std::size_t), void* context) {
    for (std::size_t part = 0; part < parts; ++part) work(context, part);
}

}  // namespace orbitsplit::pool
