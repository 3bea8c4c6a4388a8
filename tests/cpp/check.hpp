// A minimal test harness: CHECK, CHECK_THROWS and the number of failures for main to return.
#pragma once

#include <iostream>
#include <string>

inline int failures = 0;

#define CHECK(condition)                                                                 \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            ++failures;                                                                  \
            std::cerr << __FILE__ << ':' << __LINE__ << ": failed: " #condition << '\n'; \
        }                                                                                \
    } while (false)

// The expression throws Exception, and its message contains the text.
#define CHECK_THROWS(expression, Exception, text)                                                     \
    do {                                                                                              \
        std::string what = "nothing";                                                                 \
        try {                                                                                         \
            (void)(expression);                                                                       \
        } catch (const Exception& error) {                                                            \
            what = error.what();                                                                      \
        }                                                                                             \
        if (what.find(text) == std::string::npos) {                                                   \
            ++failures;                                                                               \
            std::cerr << __FILE__ << ':' << __LINE__ << ": expected " #Exception " with \"" << (text) \
                      << "\", got: " << what << '\n';                                                 \
        }                                                                                             \
    } while (false)
