/* What runs before main() on the emulated Cortex-M3: the vector table, data and zeroes. */

#include <stdint.h>

extern uint32_t _stack_top, _data_load, _data_start, _data_end, _bss_start, _bss_end;

void initialise_monitor_handles(void); /* newlib's: printf through semihosting */
void exit(int code);
int main(void);

static void halt(void)
{
    for (;;) {
    }
}

void reset(void);
void reset(void)
{
    uint32_t *from = &_data_load;
    for (uint32_t *to = &_data_start; to < &_data_end; to++) {
        *to = *from++;
    }
    for (uint32_t *to = &_bss_start; to < &_bss_end; to++) {
        *to = 0;
    }
    initialise_monitor_handles();
    exit(main());
}

typedef void (*handler)(void);

struct vectors {
    uint32_t *stack;
    handler handlers[15];
};

extern const struct vectors vectors;
__attribute__((section(".vectors"), used)) const struct vectors vectors = {
    &_stack_top,
    {reset, halt, halt, halt, halt, halt, 0, 0, 0, 0, halt, halt, 0, halt, halt},
};
