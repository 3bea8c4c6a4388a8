// An array as rows along its last axis.
#pragma once

#include <cstddef>

namespace orbitsplit::layout {

// A scalar is one row of one element.
struct Rows {
    std::size_t count;
    std::size_t length;
};

}  // namespace orbitsplit::layout
