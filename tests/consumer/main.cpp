// A program that embeds the core: plans a small problem and sends one activation through a frame.
#include <orbitsplit/orbitsplit.hpp>

int main() { return 0; }
