// What a fuzzing run did with its inputs, and claims that end it.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace fuzz {

// Fuzzing in which every input is rejected proves little: at exit, prints how many inputs were accepted.
struct Tally {
    const char* verb;
    std::uint64_t inputs = 0;
    std::uint64_t accepted = 0;
    ~Tally() {
        std::fprintf(stderr, "%s %llu of %llu inputs\n", verb, static_cast<unsigned long long>(accepted),
                     static_cast<unsigned long long>(inputs));
    }
};

inline void require(bool condition, const char* claim) {
    if (condition) return;
    std::fprintf(stderr, "broken: %s\n", claim);
    std::abort();
}

}  // namespace fuzz
